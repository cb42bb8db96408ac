"""The table of contents: every collector there is. Adding one is a new file beside this one and one line here."""

from immich_vitals.collector import Collector
from immich_vitals.collectors.backup import BackupCollector
from immich_vitals.collectors.container import ContainerCollector, ContainerUsageCollector
from immich_vitals.collectors.file import FileCollector
from immich_vitals.collectors.filesystem import FilesystemCollector
from immich_vitals.collectors.host import HostCollector
from immich_vitals.collectors.library import LibraryCollector
from immich_vitals.collectors.log import LogCollector
from immich_vitals.collectors.postgres import PostgresCollector
from immich_vitals.collectors.postgres_patrol import PostgresPatrolCollector
from immich_vitals.collectors.probe import ProbeCollector
from immich_vitals.collectors.queue import QueueCollector
from immich_vitals.collectors.redis import RedisCollector
from immich_vitals.collectors.storage import StorageCollector
from immich_vitals.collectors.version import VersionCollector

COLLECTORS: tuple[type[Collector], ...] = (
    ContainerCollector,
    ContainerUsageCollector,
    LogCollector,
    HostCollector,
    FilesystemCollector,
    StorageCollector,
    FileCollector,
    PostgresCollector,
    PostgresPatrolCollector,
    LibraryCollector,
    QueueCollector,
    RedisCollector,
    BackupCollector,
    VersionCollector,
    ProbeCollector,
)
