"""Programs behind the project's claims about speed and memory."""
