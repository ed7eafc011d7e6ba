"""File descriptors: each request under way needs two, one to the client and one to a backend.

A process that has none left can neither accept a client nor reach a backend, and the backends would look
broken. So the limit is raised as far as allowed, and connections beyond what it bears are refused.
"""

import resource

SPARE = 96
"""For all else: the program itself, listeners, logs, health checks, scrapes, connections being refused."""


def raise_limit() -> int:
    """Raise this process's limit of open files as far as it may be; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return file_limit()


def file_limit() -> int:
    """How many files this process may have open (a very large number if there is no limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def most_connections() -> int:
    """Client connections that this process can serve at once, each with one to a backend."""
    return max(1, (file_limit() - SPARE) // 2)
