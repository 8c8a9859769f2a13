"""chainctl: VPN onion chains and the identity firewall in front of them."""

__version__ = "0.1.0"
