"""Convert image folders and archives with a class for every image to nnU-Net raw datasets.

A ``read_*`` function checks its input and returns a ``Source``, without writing anything;
``write_dataset`` writes the dataset.
"""
