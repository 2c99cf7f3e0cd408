"""
Peers that a server meets on a hospital network. Each test also checks the other associations: meanwhile the C-ECHO of a
neighbour is answered at once, and nothing remains at the end.
"""
