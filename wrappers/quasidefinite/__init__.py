"""Sparse symmetric quasidefinite systems `K v = r`, of optimality conditions for one.

    K = [ E   Aᵀ ]    E, G positive semidefinite
        [ A  −G  ]

R. J. Vanderbei, "Symmetric quasidefinite matrices", SIAM J. Optim. 5 (1995).
"""
