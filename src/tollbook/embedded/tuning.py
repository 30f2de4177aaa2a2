"""The server's settings, scaled to the machine."""

import os
from pathlib import Path

MEMORY_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MIB = 2**20


def read_memory_bytes() -> int:
    """Return the memory this machine, or this container, may use."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in MEMORY_LIMIT_FILES:
        limit = Path(name).read_text().strip() if Path(name).is_file() else ""
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def render_settings(memory_bytes: int) -> str:
    """Return postgresql.conf for a server that shares a machine of this size with its clients."""
    settings = {
        "max_connections": 200,
        "shared_buffers": _share(memory_bytes, 8, 32, 1024),
        "effective_cache_size": _share(memory_bytes, 2, 64, 1024 * 1024),
        "maintenance_work_mem": _share(memory_bytes, 32, 32, 1024),
        "work_mem": _share(memory_bytes, 1024, 4, 32),
        "max_locks_per_transaction": 256,  # a dump locks every partition and index at once
        "max_wal_size": "2GB",  # checkpoints by time, not by volume: after each, whole pages go into the log
        "min_wal_size": "256MB",
        "checkpoint_timeout": "15min",
        "random_page_cost": "1.1",  # solid state disks
        "jit": "off",  # costs more than it gains on short statements
        "track_io_timing": "on",
        "autovacuum_naptime": "20s",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
        "lc_messages": "'C'",
        "log_checkpoints": "off",
        "log_line_prefix": "'%m [%p] %u@%d %a '",
    }
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


def _share(memory_bytes: int, part: int, mib_min: int, mib_max: int) -> str:
    return f"{min(max(memory_bytes // part // MIB, mib_min), mib_max)}MB"
