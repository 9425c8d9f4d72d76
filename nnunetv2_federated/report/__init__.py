"""Pictures and tables made from the files a run leaves behind."""
