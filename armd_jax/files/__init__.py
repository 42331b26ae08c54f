"""What a user names on a disk: paths that mean what they look like, files that are whole, folders
that one program at a time writes to, and nothing deleted that the project did not make."""
