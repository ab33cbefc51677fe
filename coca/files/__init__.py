"""Files of any file system: found, read in spite of errors that pass, written as a whole."""
