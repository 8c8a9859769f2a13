"""The command line. It talks to the supervisor over a unix socket and imports no driver."""
