"""The image and the local stack say what the programs understand, and agree with each other and the chart."""

import re
import subprocess
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer

import yaml

from rendered import case
from settings import ROOT, is_known_variable, wrong_arguments

DEPLOY = ROOT / "deploy"


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def dockerfile():
    """The instructions, one a line, without comments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return re.sub(r"\\\n\s*", "", text)


def defaults(value):
    """A value as it is where nobody set a variable."""
    return re.sub(r"\$\{[A-Z0-9_]+:-([^}]*)\}", r"\1", str(value))


class Compose(unittest.TestCase):
    def setUp(self):
        self.services = compose()["services"]
        self.ours = {name: self.services[name] for name in ("coordinator", "worker")}

    def test_every_variable_is_a_key_of_the_configuration(self):
        for name, service in self.ours.items():
            with self.subTest(service=name):
                unknown = [variable for variable in service["environment"] if not is_known_variable(variable)]
                self.assertEqual(unknown, [])
                self.assertLessEqual({"TESSERA_BROKER", "TESSERA_STORE"}, set(service["environment"]))

    def test_every_argument_is_a_flag_of_its_program(self):
        for name, service in self.ours.items():
            with self.subTest(service=name):
                self.assertEqual(wrong_arguments(service["command"]), [])

    def test_every_substitution_has_a_default(self):
        text = (DEPLOY / "compose.yaml").read_text()
        text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
        self.assertGreater(text.count("${"), 5)
        self.assertEqual(text.count("${"), len(re.findall(r"\$\{[A-Z0-9_]+:-[^}]*\}", text)))

    def test_what_is_referred_to_is_there(self):
        volumes = set(compose()["volumes"])
        for name, service in self.services.items():
            with self.subTest(service=name):
                self.assertLessEqual(set(service.get("depends_on", {})), set(self.services))
                for mount in service.get("volumes", []):
                    source = mount.split(":")[0]
                    there = (DEPLOY / source).is_file() if source.startswith(".") else source in volumes
                    self.assertTrue(there, mount)
                if "build" in service:
                    context = DEPLOY / service["build"]["context"]
                    self.assertTrue((context / service["build"]["dockerfile"]).is_file())

    def test_images_have_a_version(self):
        for name, service in self.services.items():
            with self.subTest(service=name):
                tag = defaults(service["image"]).rpartition(":")[2]
                self.assertNotIn(tag, ("", "latest"))

    def test_a_service_that_is_waited_for_says_when_it_is_ready(self):
        for service in self.services.values():
            for name, wait in service.get("depends_on", {}).items():
                if wait["condition"] == "service_healthy":
                    self.assertIn("healthcheck", self.services[name])

    def test_credentials_agree(self):
        s3, rabbitmq = self.services["s3"]["environment"], self.services["rabbitmq"]["environment"]
        for service in self.ours.values():
            environment = service["environment"]
            self.assertEqual(environment["AWS_ACCESS_KEY_ID"], s3["GARAGE_DEFAULT_ACCESS_KEY"])
            self.assertEqual(environment["AWS_SECRET_ACCESS_KEY"], s3["GARAGE_DEFAULT_SECRET_KEY"])
            self.assertEqual(environment["TESSERA_STORE"], "s3://" + s3["GARAGE_DEFAULT_BUCKET"])
            user, password = rabbitmq["RABBITMQ_DEFAULT_USER"], rabbitmq["RABBITMQ_DEFAULT_PASS"]
            self.assertIn(f"{user}:{password}@rabbitmq:", environment["TESSERA_BROKER"])
        self.assertRegex(defaults(s3["GARAGE_DEFAULT_ACCESS_KEY"]), "^GK[0-9a-f]{24}$")
        self.assertRegex(defaults(s3["GARAGE_DEFAULT_SECRET_KEY"]), "^[0-9a-f]{64}$")
        self.assertRegex(defaults(s3["GARAGE_RPC_SECRET"]), "^[0-9a-f]{64}$")

    def test_the_s3_server_is_where_the_farm_looks_for_it(self):
        config = (DEPLOY / "garage.toml").read_text()
        region = re.search('s3_region = "(.+)"', config)[1]
        port = re.search(r'api_bind_addr = "\[::\]:(\d+)"', config)[1]
        for service in self.ours.values():
            self.assertEqual(service["environment"]["AWS_REGION"], region)
            self.assertEqual(service["environment"]["AWS_ENDPOINT_URL_S3"], f"http://s3:{port}")

    def test_the_broker_waits_as_long_as_the_farm_believes(self):
        timeout = re.search(r"^consumer_timeout = (\d+)$", (DEPLOY / "rabbitmq.conf").read_text(), re.MULTILINE)[1]
        for service in self.ours.values():
            hours = service["environment"]["TESSERA_BROKER_CONSUMER_TIMEOUT"]
            self.assertEqual(hours, f"{int(timeout) / 3_600_000:g}h")

    def test_nothing_is_published_beyond_this_machine(self):
        for service in self.services.values():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_a_worker_is_killed_only_after_its_grace(self):
        worker = self.services["worker"]
        grace, stop = worker["environment"]["TESSERA_GRACE"], worker["stop_grace_period"]
        self.assertGreaterEqual(int(stop.removesuffix("s")), int(grace.removesuffix("s")) + 15)

    def test_the_collector_hears_where_the_stack_says(self):
        config = yaml.safe_load((DEPLOY / "collector.yaml").read_text())
        endpoint = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        head = (DEPLOY / "compose.yaml").read_text().split("\nname:")[0]
        self.assertIn(f"OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:{endpoint.rpartition(':')[2]} ", head)
        self.assertEqual(set(config["service"]["pipelines"]), {"traces", "metrics"})


class Image(unittest.TestCase):
    def test_it_holds_programs_that_exist(self):
        built = re.findall(r"--bin (\S+)", dockerfile())
        self.assertEqual(built, ["tessera", "tessera-coordinator", "tessera-worker"])
        for manifest, program in (("coordinator", built[1]), ("worker", built[2])):
            self.assertIn(f'[[bin]]\nname = "{program}"', (ROOT / manifest / "Cargo.toml").read_text())
        installed = re.search(r"install -D -t /out (.+)", dockerfile())[1].split()
        self.assertEqual(installed, [f"target/release/{program}" for program in built])

    def test_the_features_that_it_names_exist(self):
        named = re.search(r"FEATURES=([a-z]+)/([a-z]+)", (DEPLOY / "Dockerfile").read_text())
        self.assertRegex((ROOT / named[1] / "Cargo.toml").read_text(), rf"(?m)^{named[2]} = \[")

    def test_it_is_built_with_the_workspaces_rust(self):
        wanted = re.search(r'^rust-version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        self.assertIn(f"ARG BUILDER=docker.io/library/rust:{wanted}-bookworm", dockerfile())

    def test_its_user_is_the_charts_and_owns_the_cache(self):
        user = re.search(r"^USER (\d+):(\d+)$", dockerfile(), re.MULTILINE).groups()
        for component in ("coordinator", "worker"):
            security = case("default").pod(component)["securityContext"]
            self.assertEqual(user, (str(security["runAsUser"]), str(security["runAsGroup"])))
        cache = re.search(r"^ENV TESSERA_CACHE=(\S+)$", dockerfile(), re.MULTILINE)[1]
        self.assertEqual(cache, case("default").one("ConfigMap")["data"]["TESSERA_CACHE"])
        self.assertIn(f"install -d -o {user[0]} -g {user[1]} {cache}", dockerfile())

    def test_no_address_is_a_variable_of_the_image(self):
        # `docker exec … tessera jobs list` would want the same ports as the process that is there already.
        variables = re.findall(r"^ENV (\w+)=", dockerfile(), re.MULTILINE)
        self.assertEqual([name for name in variables if not is_known_variable(name) or "LISTEN" in name], [])
        for service in ("coordinator", "worker"):
            self.assertEqual([name for name in compose()["services"][service]["environment"] if "LISTEN" in name], [])
            data = case("default").one("ConfigMap")["data"]
            self.assertEqual([name for name in data if "LISTEN" in name], [])

    def test_the_context_has_what_the_build_needs(self):
        ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")
        ignored = [line for line in ignored if line and not line.startswith("#")]
        members = re.search(r"members = \[(.+?)\]", (ROOT / "Cargo.toml").read_text(), re.DOTALL)[1]
        needed = ["Cargo.toml", "Cargo.lock", *re.findall(r'"(.+?)"', members)]
        for path in needed:
            self.assertTrue((ROOT / path).exists(), path)
            covered = [line for line in ignored if path == line or path.startswith(line + "/")]
            self.assertEqual(covered, [], path)

    def test_its_health_check_tells_a_ready_process_from_others(self):
        check = re.search(r'CMD \["bash", "-c", "(.+)"\]$', dockerfile(), re.MULTILINE)[1]
        check = check.replace("\\\\", "\\")  # as JSON has it

        def healthy(port):
            command = check.replace("/8080", f"/{port}")
            return subprocess.run(["bash", "-c", command], stderr=subprocess.DEVNULL, timeout=10).returncode == 0

        class Process(BaseHTTPRequestHandler):
            status = 503

            def do_GET(self):
                self.send_response(self.status if self.path == "/readyz" else 404)
                self.end_headers()

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Process) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.assertFalse(healthy(server.server_port))
            Process.status = 200
            self.assertTrue(healthy(server.server_port))
            server.shutdown()
        self.assertFalse(healthy(server.server_port))
