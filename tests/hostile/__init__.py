"""
What a server meets on a hospital network. Each test is also about the others: a neighbour's C-ECHO is answered at once
meanwhile, and nothing is left when it is over.
"""
