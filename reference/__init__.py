"""The pages of docs/reference, made from the code: `make reference`. A test compares them with what is committed."""
