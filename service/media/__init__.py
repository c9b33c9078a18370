"""Media of all tasks: encoded files to arrays, and places in these arrays back to the file."""
