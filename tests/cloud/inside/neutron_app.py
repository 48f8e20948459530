"""Neutron's WSGI application, with its tables mapped before the first request.

Else, when the first request is for ports (Nova's is), that and every later one fails with status 500.
"""

from neutron.wsgi.api import application
from sqlalchemy.orm import configure_mappers

configure_mappers()
__all__ = ["application"]
