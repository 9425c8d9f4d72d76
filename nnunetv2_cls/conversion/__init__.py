"""Converters: image folders and archives with a class for every image, to nnU-Net raw datasets.

A ``read_*`` function checks what it is given and returns a ``Source``, without writing anything;
``write_dataset`` writes it.
"""
