"""The process that puts a load on a server: see `service.client.process`."""

from service.client.process import client_process

client_process()
