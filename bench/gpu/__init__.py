"""Everything the pack claims about speed on a GPU, measured by one command on a machine without network."""
