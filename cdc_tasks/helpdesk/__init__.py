"""The sample application: tickets and users, and the notifications about them."""
