"""The client of `gridloop bench` and `gridloop evaluate`: HTTP/1.1 over kept-alive connections, and loads of it."""
