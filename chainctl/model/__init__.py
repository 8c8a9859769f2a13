"""Values without behaviour towards the machine: what a chain is, and what it is made of."""
