"""What the benchmark scripts share: what is sent, the limit beside it, the machine, the servers, plots and options."""

from service.client.http import ClientFailed as BenchmarkFailed

__all__ = ["BenchmarkFailed"]
