"""nginx before the service of `service_parts`, by deploy/nginx.conf."""

import socket

from tests.support.ports import free_port
from tests.support.service_parts import ROOT

# The rest of what Debian's nginx.conf has around a site.
AROUND = """daemon off; pid {folder}/nginx.pid; error_log stderr; user root;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-bodies;
    proxy_temp_path {folder}/nginx-answers;
    include {folder}/site.conf;
}}
"""


class Proxy:
    """nginx: `uri` is what users know, `certificate` what they trust."""

    def __init__(self, service):
        self.service, self.folder = service, service.folder
        self.host, self.port = socket.gethostname(), service.ports["nginx"]
        self.uri, self.plain_port = service.proxied_uri, free_port()
        self.certificate = self.folder / "mlflow.crt"
        site = (ROOT / "deploy" / "nginx.conf").read_text()
        for documented, here in (
            ("listen 443 ssl;", f"listen {self.port} ssl;"),
            ("listen 80;", f"listen {self.plain_port};"),
            ("mlflow.example.org", self.host),
            ("/etc/nginx/mlflow", f"{self.folder}/mlflow"),
            ("http://127.0.0.1:5000", service.uri),
        ):
            assert documented in site, documented
            site = site.replace(documented, here)
        (self.folder / "site.conf").write_text(site)
        (self.folder / "nginx.conf").write_text(AROUND.format(folder=self.folder))

    def start(self):
        self.service.run("certificate", HOST=self.host, FOLDER=str(self.folder))
        daemons = self.service.daemons
        daemons.start("nginx", "nginx", "-c", f"{self.folder}/nginx.conf")
        daemons.wait("nginx", self._answers)

    def _answers(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0
