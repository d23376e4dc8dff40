"""Is a run worth starting? Says what is wrong in one line, in the time it takes, instead of 446 failures that all mean that.

preflight.py KUBECONFIG: the node is Ready; a new namespace has its default service account and root CA within a second; a pod
starts and ends; DNS answers in it; the namespace goes away.
"""
import base64, http.client, json, re, ssl, sys, tempfile, time

PATIENCE_SECONDS = 60
BUSYBOX = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
NAMESPACE = "preflight"


class Api:
    def __init__(self, kubeconfig):
        text = open(kubeconfig).read()
        value = lambda key: re.search(rf'{key}: *"?([^"\s]+)', text).group(1)
        self.context = ssl.create_default_context(cadata=base64.b64decode(value("certificate-authority-data")).decode())
        with tempfile.NamedTemporaryFile("wb") as pem:
            for part in ("client-certificate-data", "client-key-data"):
                pem.write(base64.b64decode(value(part)) + b"\n")
            pem.flush()
            self.context.load_cert_chain(pem.name)
        self.host = value("server").removeprefix("https://")
        self.connection = None

    def __call__(self, method, path, body=None):
        """Status and body; 0 if there is no answer."""
        try:
            self.connection = self.connection or http.client.HTTPSConnection(self.host, context=self.context, timeout=10)
            self.connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data.startswith(b"{") else data.decode(errors="replace")
        except OSError as error:
            self.connection = None
            return 0, str(error)


def until(what, probe, seconds=PATIENCE_SECONDS):
    """Polls until `probe` gives None; the last thing it said is the reason of the failure."""
    end = time.monotonic() + seconds
    while (why := probe()) is not None:
        if time.monotonic() > end:
            sys.exit(f"preflight: {what} within {seconds} s: {str(why)[:600]}")
        time.sleep(0.02)


def condition(wanted, actual):
    return None if wanted else actual


def main(kubeconfig):
    began = time.monotonic()
    api = None

    def node_ready():
        nonlocal api
        try:
            api = api or Api(kubeconfig)
        except (OSError, AttributeError, ssl.SSLError) as error:
            return f"no kubeconfig yet: {error}"
        status, nodes = api("GET", "/api/v1/nodes")
        if status != 200 or not nodes["items"]:
            return nodes
        conditions = {c["type"]: c["status"] for node in nodes["items"] for c in node["status"].get("conditions", [])}
        taints = [taint for node in nodes["items"] for taint in node["spec"].get("taints", [])]
        return condition(conditions.get("Ready") == "True" and not taints, f"conditions {conditions}, taints {taints}")

    until("the node is not Ready", node_ready)

    home = f"/api/v1/namespaces/{NAMESPACE}"
    status, answer = api("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    status == 201 or sys.exit(f"preflight: no namespace can be created: {answer}")
    for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
        until(f"a new namespace has no {path}", lambda: condition((got := api("GET", f"{home}/{path}"))[0] == 200, got), 1)

    container = {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", "nslookup kubernetes.default.svc.cluster.local || exit 3"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    status, answer = api("POST", f"{home}/pods", pod)
    status == 201 or sys.exit(f"preflight: no pod can be created: {answer}")

    def ended():
        _, pod = api("GET", f"{home}/pods/pod")
        return condition(pod["status"].get("phase") in ("Succeeded", "Failed"), pod["status"])

    until("a pod does not start and end", ended)
    _, pod = api("GET", f"{home}/pods/pod")
    if pod["status"]["phase"] != "Succeeded":
        _, log = api("GET", f"{home}/pods/pod/log")
        sys.exit(f"preflight: DNS does not answer in a pod: {log} {pod['status'].get('containerStatuses')}")

    api("DELETE", home)
    until("a namespace is not deleted", lambda: condition((got := api("GET", home))[0] == 404, got))
    print(f"preflight: passed in {time.monotonic() - began:.1f} s")


main(*sys.argv[1:])
