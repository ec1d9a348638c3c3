"""The chart makes objects that a cluster takes, that fit together, and that say what the programs understand."""

import functools
import json
import re
import unittest

import helm_python as helm
import yaml

from rendered import CASES, CHART, INVALID, MARKS, OLDEST, SECRETS, case, render, validate
from settings import ROOT, is_known_variable, keys, wrong_arguments

COMPONENTS = ("coordinator", "worker")


def in_each_case(test):
    """Runs the test once for every case, with its objects."""

    @functools.wraps(test)
    def run(self):
        for name in CASES:
            with self.subTest(values=name):
                test(self, case(name))

    return run


class Chart(unittest.TestCase):
    def test_lint_finds_nothing(self):
        for name, values in CASES.items():
            with self.subTest(values=name):
                report = helm.lint(CHART, values, strict=True)
                complaints = [found for found in report["messages"] if found["severity"] > 1]  # 1 is advice
                self.assertEqual((complaints, report["errors"]), ([], []))

    @in_each_case
    def test_every_object_is_valid(self, objects):
        for found in objects:
            with self.subTest(object=f"{found['kind']}/{found['metadata']['name']}"):
                validate(found)

    def test_an_object_with_a_misspelt_field_is_not_valid(self):
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "ScaledObject", "TriggerAuthentication"):
            with self.subTest(kind=kind):
                found = json.loads(json.dumps(case("scaled").of(kind)[0]))
                found["spec"]["misspelt"] = 1
                with self.assertRaisesRegex(INVALID, "misspelt"):
                    validate(found)

    @in_each_case
    def test_no_two_objects_share_a_name(self, objects):
        names = [(found["kind"], found["metadata"]["name"]) for found in objects]
        self.assertEqual(len(set(names)), len(names))

    @in_each_case
    def test_every_variable_is_a_key_of_the_configuration(self, objects):
        names = list(objects.one("ConfigMap")["data"])
        for component in COMPONENTS:
            names += [variable["name"] for variable in objects.container(component)["env"]]
        self.assertEqual([name for name in names if not is_known_variable(name)], [])
        self.assertIn("TESSERA_BROKER", names)

    @in_each_case
    def test_every_argument_is_a_flag_of_its_program(self, objects):
        for component in COMPONENTS:
            self.assertEqual(wrong_arguments(objects.container(component)["command"]), [])

    def test_a_flag_of_another_program_is_none(self):
        self.assertEqual(wrong_arguments(["tessera-worker", "--listen=0.0.0.0:7000"]), ["--listen=0.0.0.0:7000"])

    def test_settings_are_text_and_numbers_are_written_out(self):
        data = case("everything").one("ConfigMap")["data"]
        self.assertTrue(all(isinstance(value, str) for value in data.values()), data)
        self.assertEqual(data["TESSERA_LIMITS_MAX_PIXELS"], "1000000000")
        self.assertEqual(data["TESSERA_LOG"], "warn,coordinator=debug")
        self.assertEqual(data["TESSERA_LOG_FORMAT"], "json")
        self.assertEqual(data["TESSERA_FARM"], "night")
        self.assertEqual(data["OTEL_EXPORTER_OTLP_ENDPOINT"], "http://collector:4317")

    def test_secrets_are_in_the_secret_and_nowhere_else(self):
        for name in ("credentials", "everything"):
            with self.subTest(values=name):
                secret = json.dumps(case(name).one("Secret"))
                others = json.dumps([found for found in case(name) if found["kind"] != "Secret"])
                self.assertEqual([mark for mark in MARKS if mark not in secret], [])
                self.assertEqual([mark for mark in MARKS if mark in others], [])
        _, notes = render(SECRETS)
        self.assertEqual([mark for mark in MARKS if mark in notes], [])

    @in_each_case
    def test_no_secret_key_is_a_setting(self, objects):
        secret = {key.variable for key in keys().values() if key.secret} | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        self.assertIn("TESSERA_BROKER", secret)
        self.assertEqual(secret & set(objects.one("ConfigMap")["data"]), set())
        for component in COMPONENTS:
            plain = [variable["name"] for variable in objects.container(component)["env"] if "value" in variable]
            self.assertEqual(secret & set(plain), set())

    def test_a_secret_of_ones_own_takes_the_place_of_ours(self):
        objects = case("existing secret")
        self.assertEqual(objects.of("Secret"), [])
        self.assertEqual([mark for mark in MARKS if mark in json.dumps(objects)], [])
        for component in COMPONENTS:
            named = {variable["valueFrom"]["secretKeyRef"]["name"] for variable in objects.container(component)["env"]}
            self.assertEqual(named, {"mine"})

    @in_each_case
    def test_what_is_referred_to_is_there(self, objects):
        config_map, account = objects.one("ConfigMap"), objects.one("ServiceAccount")
        for component in COMPONENTS:
            pod, container = objects.pod(component), objects.container(component)
            self.assertEqual(container["envFrom"], [{"configMapRef": {"name": config_map["metadata"]["name"]}}])
            self.assertEqual(pod["serviceAccountName"], account["metadata"]["name"])
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            self.assertEqual(mounts, {volume["name"] for volume in pod["volumes"]})
            for secret in objects.of("Secret"):  # none where there is one of their own
                for variable in container["env"]:
                    wanted = variable["valueFrom"]["secretKeyRef"]
                    self.assertEqual(wanted["name"], secret["metadata"]["name"])
                    self.assertTrue(wanted["key"] in secret["stringData"] or wanted.get("optional"), wanted)

    @in_each_case
    def test_selectors_select_one_deployment_each(self, objects):
        labels = {
            found["metadata"]["name"]: found["spec"]["template"]["metadata"]["labels"]
            for found in objects.of("Deployment")
        }
        for found in (own for kind in ("Deployment", "Service", "PodDisruptionBudget") for own in objects.of(kind)):
            selector = found["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            selected = [name for name, own in labels.items() if selector.items() <= own.items()]
            self.assertEqual(selected, [found["metadata"]["name"]], found["kind"])

    @in_each_case
    def test_every_process_says_whether_it_lives_and_is_ready(self, objects):
        for component in COMPONENTS:
            container = objects.container(component)
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
                asked = container[probe]["httpGet"]
                self.assertEqual((asked["path"], ports[asked["port"]]), (path, 8080))
            self.assertIn("--health-listen=0.0.0.0:8080", container["command"])

    @in_each_case
    def test_one_coordinator_writes_at_a_time(self, objects):
        spec = objects.one("Deployment", "-coordinator")["spec"]
        self.assertEqual((spec["replicas"], spec["strategy"]), (1, {"type": "Recreate"}))
        budgets = [found["metadata"]["name"] for found in objects.of("PodDisruptionBudget")]
        self.assertEqual([name for name in budgets if name.endswith("coordinator")], [])

    def test_the_service_leads_to_grpc(self):
        objects = case("default")
        (port,) = objects.one("Service")["spec"]["ports"]
        container = objects.container("coordinator")
        (target,) = [own["containerPort"] for own in container["ports"] if own["name"] == port["targetPort"]]
        self.assertIn(f"--listen=0.0.0.0:{target}", container["command"])

    def test_a_worker_is_killed_only_after_its_grace(self):
        for name, seconds in (("default", 120), ("everything", 600)):
            grace = case(name).one("ConfigMap")["data"]["TESSERA_GRACE"]
            self.assertEqual(grace, f"{seconds}s")
            self.assertGreaterEqual(case(name).pod("worker")["terminationGracePeriodSeconds"], seconds + 15)

    @in_each_case
    def test_pods_may_do_nothing_but_run(self, objects):
        for component in COMPONENTS:
            pod, own = objects.pod(component), objects.container(component)["securityContext"]
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertTrue(own["readOnlyRootFilesystem"])
            self.assertFalse(own["allowPrivilegeEscalation"])
            self.assertEqual(own["capabilities"], {"drop": ["ALL"]})

    def test_where_processes_write_is_a_volume(self):
        objects = case("default")
        data = objects.one("ConfigMap")["data"]
        for component in COMPONENTS:
            mounts = {mount["mountPath"] for mount in objects.container(component)["volumeMounts"]}
            self.assertEqual(mounts, {data["TESSERA_SCRATCH"], data["TESSERA_CACHE"]})

    def test_a_worker_with_a_card_asks_for_one_and_uses_it(self):
        objects = case("gpu")
        pod, container = objects.pod("worker"), objects.container("worker")
        self.assertEqual(container["resources"]["limits"]["nvidia.com/gpu"], 1)
        self.assertIn("--device=cuda:0", container["command"])
        self.assertEqual(pod["runtimeClassName"], "nvidia")
        self.assertEqual(pod["nodeSelector"], {"pool": "cards"})
        self.assertEqual([own["key"] for own in pod["tolerations"]], ["cards", "nvidia.com/gpu"])
        self.assertEqual((container["image"], objects.container("coordinator")["image"]), ("tessera:cuda", "tessera:0.1.0"))
        plain = case("default").container("worker")
        self.assertNotIn("nvidia.com/gpu", plain["resources"]["limits"])
        self.assertIn("--device=cpu", plain["command"])

    def test_a_change_of_settings_or_credentials_replaces_the_pods(self):
        def annotations(values):
            objects, _ = render(values)
            return [found["spec"]["template"]["metadata"]["annotations"] for found in objects.of("Deployment")]

        before = annotations({})
        for values in ({"config": {"log": "debug"}}, {"broker": {"url": "amqp://other"}}):
            for old, new in zip(before, annotations(values), strict=True):
                self.assertNotEqual(old, new)

    def test_scaled_workers_have_no_fixed_number(self):
        self.assertNotIn("replicas", case("scaled").one("Deployment", "-worker")["spec"])
        self.assertEqual(case("default").one("Deployment", "-worker")["spec"]["replicas"], 2)
        self.assertEqual(case("default").of("ScaledObject"), [])

    def test_scaling_counts_tasks_in_hand_and_waiting_of_every_priority(self):
        wanted = {
            "scaled": ("tessera", "cpu.candle-0-11-1-1b9e5a03.f32", "cuda.candle-0-11-1-1b9e5a03.f32"),
            "everything": ("night", "cuda.candle-0-11-1-1b9e5a03.f32", "cuda.candle-0-11-1-00000000.f32"),
        }
        for name, (farm, mine, other) in wanted.items():
            with self.subTest(values=name):
                objects = case(name)
                scaled, authentication = objects.one("ScaledObject"), objects.one("TriggerAuthentication")
                deployment = objects.one("Deployment", "-worker")
                self.assertEqual(scaled["spec"]["scaleTargetRef"]["name"], deployment["metadata"]["name"])
                (trigger,) = scaled["spec"]["triggers"]
                asked = trigger["metadata"]
                self.assertEqual((asked["protocol"], asked["mode"]), ("http", "QueueLength"))
                self.assertEqual((asked["excludeUnacknowledged"], asked["operation"]), ("false", "sum"))
                counted = re.compile(asked["queueName"])
                for priority in ("low", "normal", "high"):
                    for place, counts in ((mine, True), ("any", True), (other, False)):
                        for queue in (f"{farm}.tasks.{place}.{priority}", f"{farm}.tasks.{place}.long.{priority}"):
                            self.assertEqual(bool(counted.search(queue)), counts, queue)
                for queue in (f"{farm}.reports", f"{farm}.dead", f"x{farm}.tasks.{mine}.low", f"{farm}-2.tasks.{mine}.low"):
                    self.assertIsNone(counted.search(queue), queue)
                self.assertEqual(trigger["authenticationRef"]["name"], authentication["metadata"]["name"])
                (host,) = authentication["spec"]["secretTargetRef"]
                secret = objects.one("Secret")
                self.assertEqual(host["name"], secret["metadata"]["name"])
                self.assertIn(host["key"], secret["stringData"])

    def test_scaling_without_a_way_to_ask_the_broker_is_refused(self):
        with self.assertRaisesRegex(helm.HelmError, "managementUrl"):
            render({"worker": {"autoscaling": {"enabled": True}}})
        objects, _ = render({"worker": {"autoscaling": {"enabled": True}}, "existingSecret": "mine"})
        self.assertEqual(objects.one("TriggerAuthentication")["spec"]["secretTargetRef"][0]["name"], "mine")

    def test_names_follow_the_release(self):
        self.assertEqual(case("default").one("Service")["metadata"]["name"], "farm-tessera-coordinator")
        self.assertEqual(case("everything").one("Service")["metadata"]["name"], "night-shift-coordinator")

    def test_the_installer_is_told_how_to_reach_the_farm(self):
        _, notes = render(CASES["default"])
        self.assertIn("service/farm-tessera-coordinator 7000:7000", notes)

    def test_the_chart_has_the_programs_version(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
        self.assertEqual(chart["appVersion"], version)
        self.assertEqual(chart["kubeVersion"], f">={OLDEST}-0")


class Schema(unittest.TestCase):
    def test_wrong_values_are_refused(self):
        for values in (
            {"woker": {}},
            {"worker": {"replicas": -1}},
            {"worker": {"replicas": "two"}},
            {"worker": {"replica": 1}},
            {"worker": {"gpu": {"enabled": "yes"}}},
            {"worker": {"graceSeconds": 1.5}},
            {"worker": {"autoscaling": {"minReplicas": 0}}},
            {"worker": {"autoscaling": {"computeClass": "cpu"}}},
            {"worker": {"podDisruptionBudget": {"maxUnavailable": "130%"}}},
            {"worker": {"resources": {"limits": {"memory": "8 gigabytes"}}}},
            {"coordinator": {"replicas": 2}},
            {"coordinator": {"service": {"port": 70000}}},
            {"farm": "Night Shift"},
            {"store": {"url": "file:///data"}},
            {"store": {"url": "memory:"}},
            {"broker": {"url": "http://rabbitmq"}},
            {"config": {"max_pixels": 1}},
            {"config": {"broker": "amqp://u:p@rabbitmq"}},
            {"config": {"log": ["debug"]}},
            {"image": {"pullPolicy": "Sometimes"}},
        ):
            with self.subTest(values=values), self.assertRaises(helm.HelmError):
                render(values)

    def test_every_value_is_in_the_schema_and_has_a_default(self):
        schema = json.loads((CHART / "values.schema.json").read_text())

        def compare(own, values, path):
            own = schema["$defs"][own["$ref"].rsplit("/", 1)[1]] if "$ref" in own else own
            if own.get("type") != "object" or own.get("additionalProperties") is not False:
                return
            known = set(own["properties"]) - {"global"}  # Helm's own, for charts within charts
            if own is not schema["$defs"]["resources"]:
                self.assertEqual(set(values), known, path)
            for name, value in values.items():
                compare(own["properties"][name], value, f"{path}.{name}")

        compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "values")

    def test_the_settings_are_those_of_the_configuration(self):
        # Set by the chart itself, or not a farm's.
        own = {"store", "broker", "farm", "listen", "health_listen", "device", "worker_id", "grace", "scratch", "cache"}
        others = {"model_cache", "server", "cache_limit_bytes"}
        schema = json.loads((CHART / "values.schema.json").read_text())
        known = schema["properties"]["config"]["propertyNames"]["enum"]
        self.assertEqual(set(known), set(keys()) - own - others)
