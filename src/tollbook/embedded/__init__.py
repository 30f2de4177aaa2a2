"""A real PostgreSQL that comes with Tollbook, for every machine and user, with nothing to install.

One server per data folder, shared by every process that asks for it: the first starts it, the others attach.
It is reached over a unix socket in a closed folder and never over the network. It ends with the process that
started it, however that ends; others who still need it start it again, which recovers what a kill left.
"""

from tollbook.embedded.errors import EmbeddedServerFailed as EmbeddedServerFailed
from tollbook.embedded.errors import EmbeddedServerMissing as EmbeddedServerMissing
from tollbook.embedded.errors import NoAccess as NoAccess
from tollbook.embedded.errors import NoSpaceLeft as NoSpaceLeft
from tollbook.embedded.errors import OtherMajorVersion as OtherMajorVersion
from tollbook.embedded.programs import binaries as binaries
from tollbook.embedded.server import Server as Server
from tollbook.embedded.server import start as start
from tollbook.embedded.server import stop as stop
from tollbook.embedded.server import throwaway as throwaway
