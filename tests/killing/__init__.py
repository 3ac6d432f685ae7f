"""Sudden deaths for the tests: of a process at a chosen system call, and of a disk's cache.

``hooks`` makes every change below a folder a point at which the process may die; ``server`` forks
runs that do, at the cost of a fork; ``plans`` and ``site`` bring the hooks into the processes of a
cluster, and ``commands`` runs such a cluster. ``power`` says what a disk may hold after a power
cut; ``remains`` judges what a run has left. Linux only.
"""
