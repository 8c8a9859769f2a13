"""What has to survive the supervisor: the journal."""
