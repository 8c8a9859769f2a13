"""A small internet in network namespaces, for demos, tests and benches.

`Lab` of `chainctl.lab.lab` is the way in. Nothing here imports more of chainctl than
`chainctl.host` and the error tree, and the product imports nothing from here.
"""
