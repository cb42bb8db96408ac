"""What the demo can break, by name."""

from immich_vitals.demo.fault import Fault
from immich_vitals.demo.faults_backup import FAULTS_BACKUP
from immich_vitals.demo.faults_file import FAULTS_FILE
from immich_vitals.demo.faults_patrol import FAULTS_PATROL
from immich_vitals.demo.faults_probe import FAULTS_PROBE
from immich_vitals.demo.faults_services import FAULTS_SERVICES
from immich_vitals.demo.faults_storage import FAULTS_STORAGE
from immich_vitals.demo.faults_version import FAULTS_VERSION

FAULTS: dict[str, Fault] = {
    **FAULTS_SERVICES,
    **FAULTS_PATROL,
    **FAULTS_STORAGE,
    **FAULTS_FILE,
    **FAULTS_PROBE,
    **FAULTS_BACKUP,
    **FAULTS_VERSION,
}
