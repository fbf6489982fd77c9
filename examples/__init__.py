"""Six small projects to copy from, and the program that starts one of them with all that it needs."""
