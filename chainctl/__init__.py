"""chainctl: VPN onion chains and the identity firewall in front of them."""

__version__ = "0.1.0"
PROTOCOL = 1
"""Of the supervisor's socket. Raised with every change of a request or an answer, since the
supervisor that runs may be older than the command.
"""
