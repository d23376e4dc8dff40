"""What a run of the suite came to.

  follow PHASE DIR      ginkgo's verbose output on standard input → one line per finished spec; failures whole into DIR/PHASE.log
  table DIR [--update]  the table of DIR's JUnit files, DIR/failures.txt and DIR/failures/; fails if a spec of expected.txt failed
  regex FILE            a regular expression that matches the names in FILE
"""
import builtins, collections, functools, glob, os, re, sys
import xml.etree.ElementTree as xml

# Whatever the machine's locale says.
open = functools.partial(builtins.open, encoding="utf-8", errors="replace")
sys.stdout.reconfigure(encoding="utf-8", errors="replace")

HERE = os.path.dirname(os.path.abspath(__file__))
FINISHED = re.compile(r"^(?:• )?(?:(?P<verdict>\[(?:FAILED|PANICKED|TIMEDOUT|INTERRUPTED|ABORTED)\]) )?\[(?P<seconds>[\d.]+) seconds\]$")
RULE = "------------------------------"


def listed(path):
    """The names in a list: one a line, `#` begins a comment line."""
    return [line.strip() for line in open(path) if line.strip() and not line.startswith("#")] if os.path.exists(path) else []


# ---- while it runs


def follow(phase, folder):
    total, done, failed, block = "?", 0, 0, []
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    with open(f"{folder}/{phase}.log", "w") as log:
        for line in sys.stdin:
            line = line.rstrip("\n")
            if match := re.match(r"Will run (\d+) of \d+ specs", line):
                total = match[1]
                print(f"{phase}: {total} specs", flush=True)
            if line != RULE:
                block.append(line)
                continue
            verdict = next((m for text in block[:3] if (m := FINISHED.match(text))), None)
            name = next((text for text in block[1:4] if text.startswith("[sig-")), None)
            if verdict and name:
                done, failed = done + 1, failed + bool(verdict["verdict"])
                word = "FAILED" if verdict["verdict"] else "ok"
                print(f"{done:4}/{total} {failed:3} failed  {word:6} {float(verdict['seconds']):6.1f}s  {plain(name)}", flush=True)
            if not verdict or verdict["verdict"]:
                log.write("\n".join([*block, RULE, ""]))
                log.flush()
            block = []
        log.write("\n".join(block) + "\n")
    if total == "?":
        print(f"{phase}: the suite did not run:\n" + "\n".join(block[-20:]))


# ---- afterwards


def plain(name):
    """A spec's name as ginkgo prints it, less what ginkgo adds: the kind of node, the labels."""
    return re.sub(r" \[sig-[^\[\]]*, [^\[\]]*\]$", "", name.replace("[It] ", ""))


class Spec:
    def __init__(self, case):
        self.name = plain(case.get("name"))
        self.seconds = float(case.get("time") or 0)
        skipped, failure = case.find("skipped"), case.find("failure")
        failure = case.find("error") if failure is None else failure
        self.state = "outside" if skipped is not None else "passed" if failure is None else "failed"
        if skipped is not None and re.search(r"skipped - .", skipped.get("message") or ""):
            self.state = "not run"
        self.reason = "" if failure is None else ((failure.get("message") or "") + "\n" + (failure.text or "")).strip()
        self.output = "\n".join(e.text or "" for e in case.iter() if e.tag in ("system-err", "system-out"))

    @property
    def sig(self):
        return re.match(r"\[sig-([\w-]+)\]", self.name)[1]


def specs(folder):
    """By name; a spec that several files list counts as what it came to where it ran."""
    found = {}
    for path in sorted(glob.glob(f"{folder}/*.xml")):
        for case in xml.parse(path).iter("testcase"):
            if case.get("name").startswith("[It] [sig-"):
                spec = Spec(case)
                if spec.name not in found or found[spec.name].state == "outside":
                    found[spec.name] = spec
    return found


def first_line(reason):
    """One line of a failure that says why: its texts, without the dumped objects and stacks around them."""
    kept = []
    for line in map(str.strip, reason.splitlines()):
        if re.search(r"^In \[|^Full Stack Trace|^> Enter ", line):
            break
        if line and not re.match(r"[fkv]:|[\w./-]+:( .*)?$|- [\w.]+:|[{}\[\]]+,?$|<.*>:? ?\{?$|Got instead", line):
            kept.append(line)
    return " | ".join(kept)[:400] or "no reason given"


def table(folder, update=False):
    all_specs = specs(folder)
    ran = [spec for spec in all_specs.values() if spec.state != "outside"]
    if not ran:
        sys.exit(f"no spec ran (logs: {folder})")
    by_sig = collections.defaultdict(collections.Counter)
    for spec in ran:
        by_sig[spec.sig][spec.state] += 1
        by_sig[spec.sig]["seconds"] += spec.seconds
    by_sig["all"] = sum(by_sig.values(), collections.Counter())
    print(f"\n{'SIG':16} {'passed':>7} {'failed':>7} {'not run':>8} {'spec s':>8}")
    for sig, counts in sorted(by_sig.items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"{sig:16} {counts['passed']:7} {counts['failed']:7} {counts['not run']:8} {counts['seconds']:8.0f}")
    print("\nslowest")
    for spec in sorted(ran, key=lambda spec: -spec.seconds)[:10]:
        print(f"{spec.seconds:8.1f} s  {spec.name}")

    failed = sorted((spec for spec in ran if spec.state == "failed"), key=lambda spec: spec.name)
    os.makedirs(f"{folder}/failures", exist_ok=True)
    with open(f"{folder}/failures.txt", "w") as out:
        for number, spec in enumerate(failed):
            out.write(f"{spec.name}\n    {first_line(spec.reason)}\n    failures/{number:03}.log\n")
            with open(f"{folder}/failures/{number:03}.log", "w") as whole:
                whole.write(f"{spec.name}\n\n{spec.reason}\n\n{spec.output}\n")
    if failed:
        print(f"\nfailed, with reasons in {folder}/failures.txt")
        for spec in failed[:40]:
            print(f"  {spec.name}")
        if len(failed) > 40:
            print(f"  … and {len(failed) - 40} more")
    passed, not_run = ({spec.name for spec in ran if spec.state == state} for state in ("passed", "not run"))
    status = ratchet(passed, {spec.name for spec in failed}, not_run, update)
    counts = by_sig["all"]
    print(f"\n{counts['passed']} passed, {counts['failed']} failed, {counts['not run']} skipped")
    sys.exit(status)


def ratchet(passed, failed, not_run, update):
    """expected.txt only grows by itself; a spec of flaky.txt (`name — what is known`) may fail for now."""
    path = f"{HERE}/expected.txt"
    expected = set(listed(path))
    flaky = {line.split(" — ")[0] for line in listed(f"{HERE}/flaky.txt")}
    new = {name for name in passed - expected if "[Conformance]" in name}
    if update and new:
        header = [line for line in open(path) if line.startswith("#")] if os.path.exists(path) else []
        with open(path, "w") as out:
            out.writelines(header + [name + "\n" for name in sorted(expected | new)])
        print(f"\n{len(new)} specs added to tests/upstream/expected.txt")
    elif new:
        print(f"\n{len(new)} specs passed that are not yet in tests/upstream/expected.txt (UPDATE_EXPECT=1 adds them)")
    for name in sorted(expected & flaky & failed):
        print(f"flaky, failed this time: {name}")
    worse = sorted((expected - flaky) & (failed | not_run))
    for name in worse:
        print(f"PASSED BEFORE, does not now: {name}")
    return 1 if worse else 0


def regex(path):
    print("|".join(re.escape(name).replace(r"\ ", " ").replace(r"\-", "-") for name in listed(path)))


if __name__ == "__main__":
    {"follow": follow, "table": lambda folder, *flags: table(folder, "--update" in flags), "regex": regex}[sys.argv[1]](*sys.argv[2:])
