"""The doors to the machine: processes, namespaces, netlink, nft, files, clock."""
