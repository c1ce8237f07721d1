# twistd -noy stor.tac, with the configuration named by $CONFIG_FILE.
from twisted.application.service import Application

from stor.starting import Options, makeService

application = Application("stor")
makeService(Options()).setServiceParent(application)
