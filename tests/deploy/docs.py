"""The documentation: a book that builds, links that lead somewhere, no page that is in no list."""

import html
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile

import yaml

from check import ROOT, check, current, run

DOCS = ROOT / "docs"
# What people read.
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md"), *(ROOT / "terraform").rglob("*.md"), ROOT / "crates/vpcsim/README.md"])


def without_code(text):
    """A page without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text):
    """The anchors of a page's headings, as GitHub and mdBook make them."""
    found = set()
    for line in re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).splitlines():
        if heading := re.match(r"^#+ (.*)", line):
            plain = re.sub(r"[^\w\- ]", "", html.unescape(heading[1]).lower())
            found.add(plain.strip().replace(" ", "-"))
    return found


@check
def links_within_the_repository_lead_somewhere():
    wrong = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or ROOT not in there.parents and there != ROOT:
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
            elif anchor and anchor not in anchors(there.read_text()):
                wrong.append(f"{page.relative_to(ROOT)}: {link} has no such heading")
    assert not wrong, "\n".join(wrong)


def commands(program):
    """The command lines of a program in the blocks of all pages, where they stand."""
    for page in PAGES:
        # Blocks of other languages are read, too: what ends one would begin another.
        fenced = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.M | re.S)
        for block in (block for _, language, block in fenced if language in ("", "sh")):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                for part in re.split(r"\s+#|\s*(?:[|;]|&&)\s*|\$\(", line):
                    part = part.strip().removeprefix("until ")
                    if part.startswith(program + " "):
                        yield f"{page.relative_to(ROOT)}: {part}", shlex.split(part)


@check
def commands_of_kubectl_and_helm_are_ones_that_they_take():
    for program, fewest in [("kubectl", 8), ("helm", 6)]:
        found = list(commands(program))
        assert len(found) >= fewest, f"{program}: {found}"
        for where, words in found:
            # Read by the program itself: verbs and options. What follows -- is another program's.
            words = words[:words.index("--")] if "--" in words else words
            done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False)
            assert done.returncode == 0 and "Usage:" in done.stdout, f"{where}\n{done.stdout}{done.stderr}"


@check
def what_is_run_in_containers_is_in_them():
    objects = filter(None, yaml.safe_load_all(run("helm", "template", "sluice", ROOT / "deploy/chart", "--namespace", "kube-system")))
    pods = [found["spec"]["template"]["spec"] for found in objects if found["kind"] == "DaemonSet"]
    containers = {one["name"] for pod in pods for one in pod["containers"] + pod.get("initContainers", [])}
    programs = {name for names in re.findall(r"^for name in (sluice[\w -]*); do install", (ROOT / "deploy/image/rootfs").read_text(), re.M) for name in names.split()}
    found = [(where, words) for where, words in commands("kubectl") if "--" in words]
    assert len(found) >= 4, found
    for where, words in found:
        program = words[words.index("--") + 1]
        assert program.startswith("/usr/local/bin/") and program.removeprefix("/usr/local/bin/") in programs, where
        if "exec" in words:
            assert words[words.index("-c") + 1] in containers, where


@check
def charts_are_installed_with_values_that_they_have():
    installs = [(where, words) for where, words in commands("helm") if words[1] in ("install", "upgrade", "template")]
    assert installs
    for where, words in installs:
        chart = [word for word in words[3:] if word == "deploy/chart"]
        sets = [part for flag, value in zip(words, words[1:]) if flag == "--set" for part in (flag, value)]
        assert chart, where
        run("helm", "template", "sluice", ROOT / "deploy/chart", "--namespace", "kube-system", *sets)


@check
def decisions_are_listed():
    head = "# Decisions\n\nWhat is hard to take back, or departs from what one would expect.\n\n"
    pages = sorted(DOCS.glob("adr/0*.md"))
    listed = "".join(f"- [{page.read_text().splitlines()[0].removeprefix('# ')}]({page.name})\n" for page in pages)
    current("docs/adr/README.md", head + listed)


@check
def every_page_is_in_the_book():
    listed = set(re.findall(r"\]\(([^)]+)\)", (DOCS / "SUMMARY.md").read_text()))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.glob("*.md")} - {"SUMMARY.md"}
    assert pages | {"adr/README.md"} == listed, f"docs/SUMMARY.md lacks {sorted(pages - listed)}"


@check
def the_book_builds():
    with tempfile.TemporaryDirectory() as directory:
        run("mdbook", "build", DOCS, "--dest-dir", directory)
        assert "Sluice" in open(f"{directory}/getting-started.html").read()


# Where the fields of custom resources are: of policies, of what ipamd reads.
FIELD_PAGES = ["policy-fields.md", "ipamd-kubernetes.md"]


def code(cell):
    """The spans of code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def field_tables():
    """The sections of pages that list fields: (page, group, version, the kinds that the heading names) and paths with their types.

    Such a section names the apiVersion first. The first cell of a table's head says what its fields are of: of the object, or of paths that are
    listed elsewhere in the section, by how these end.
    """
    for page in FIELD_PAGES:
        for section in re.split(r"^## ", (DOCS / page).read_text(), flags=re.M)[1:]:
            heading, _, text = section.partition("\n")
            versions = re.match(r"\n`([\w.]+)/(\w+)`", text)
            if not versions:
                continue
            rows = []
            for table in re.findall(r"^\| of .*\n\|[-|]+\n(?:\|.*\n)+", text, re.M):
                head, _, *lines = table.splitlines()
                rows += [(code(head.split("|")[1]) or [""], code(line.split("|")[1]), line.split("|")[2].strip()) for line in lines]
                wrong = [line for line in lines if len(re.split(r" ?\| ?", line)) != 6]
                assert not wrong, f"{page}: not four cells: {wrong}"
            paths = {}
            while True:
                before = len(paths)
                for ends, names, kind in rows:
                    for end in ends:
                        above = [""] if not end else [path + "." for path in paths if path == end or path.endswith("." + end)]
                        paths |= {path + name: kind for path in above for name in names}
                if len(paths) == before:
                    break
            nowhere = {end for ends, _, _ in rows for end in ends if end and not any(f".{path}".endswith("." + end) for path in paths)}
            assert not nowhere, f"{page}: {heading}: there is no {sorted(nowhere)}"
            yield page, *versions.groups(), re.findall(r"[A-Z]\w+[a-z]+\w*", heading.partition(" of ")[0]), paths


def schema_paths(schema, at=""):
    """The paths of a schema, as the pages write them, each with its type and whether anything may stand below it."""
    for name, inner in schema.get("properties", {}).items():
        path = at + name
        if inner["type"] == "array":
            path, innermost = path + "[]", inner["items"]
        else:
            innermost = inner
        is_open = innermost["type"] == "object" and ("properties" not in innermost or "x-kubernetes-preserve-unknown-fields" in innermost)
        yield path, inner["type"], is_open
        yield from schema_paths(innermost, path + ".")


@check
def fields_of_definitions_are_in_the_pages():
    pages = {(group, version, kind): (page, paths) for page, group, version, kinds, paths in field_tables() for kind in kinds}
    assert len(pages) == 10, sorted(pages)
    words = {"array": "list", "object": "object", "string": "string", "integer": "integer"}
    found = sorted((ROOT / "deploy/chart/crds").glob("*.yaml"))
    assert len(found) >= 5, found
    for file in found:
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            page, paths = pages[spec["group"], version["name"], spec["names"]["kind"]]
            there = {path: (kind, is_open) for path, kind, is_open in schema_paths(version["schema"]["openAPIV3Schema"])}
            assert there.keys() <= paths.keys(), f"{page} lacks {sorted(there.keys() - paths.keys())} of {file.name}"
            for path, (kind, _) in there.items():
                assert paths[path].startswith(words[kind]), f"{page}: {path} is {paths[path]!r}; {file.name} has {kind!r}"
            for path in paths.keys() - there.keys():
                # It is one that the definition leaves to who reads it.
                above = max((one for one in there if path.startswith(one + ".")), key=len, default=None)
                assert above and there[above][1], f"{page}: {path} is not in {file.name}"


@check
def fields_in_the_pages_are_those_that_are_read():
    def sources(*paths):
        # Without comments.
        return re.sub(r"//.*", "", "".join(path.read_text() for path in paths))

    kube = ROOT / "ipamd/kube/src"
    ipamd = sources(kube / "kinds.rs", kube / "cninode.rs", ROOT / "ipamd/daemon/src/cluster/objects.rs")
    parse = ROOT / "policy-chain/core/src/parse"
    # What is read of other kinds than policies.
    others = {"pod.rs", "service.rs", "endpoint_slice.rs", "node.rs", "namespace.rs", "visibility.rs", "plain.rs", "tests.rs"}
    policies = sources(*(path for path in parse.rglob("*.rs") if path.name not in others and "tests" not in path.relative_to(parse).parts))
    status = sources(ROOT / "policy-chain/agent/src/cluster/kube/status.rs")
    for page, _, _, kinds, paths in field_tables():
        known = {"apiVersion", "kind"} | set(re.findall(r"\w+", ipamd) if page == "ipamd-kubernetes.md" else re.findall(r'"(\w+)"', policies))
        for path in paths:
            name = path.rpartition(".")[2].removesuffix("[]")
            assert name in known or path.startswith("status.") and f'"{name}"' in status, f"{page}: nothing reads {path} of {kinds[0]}"
    # The other way round: each field's name, and each word that a field may have, is on the page. Metadata has two that mean nothing to policies.
    listed = {word for span in code((DOCS / "policy-fields.md").read_text()) for word in re.findall(r"\w+", span)}
    read = set(re.findall(r'"([a-z][A-Za-z0-9]*)"', policies)) - {"uid", "creationTimestamp"}
    assert len(read) > 100 and read <= listed, f"policy-fields.md lacks {sorted(read - listed)}"


@check
def workflows_in_the_pages_are_ones_and_run_what_there_is():
    blocks = [(page, block) for page in PAGES for block in re.findall(r"^```yaml\n(name: .*?)^```", page.read_text(), re.M | re.S)]
    blocks += [(path, path.read_text()) for path in sorted((ROOT / "deploy/github").glob("*.yaml"))]
    assert len(blocks) >= 2, blocks
    for page, block in blocks:
        workflow = yaml.safe_load(block)
        # YAML 1.1 reads `on` as true.
        assert set(workflow) - {"permissions"} == {"name", True, "jobs"}, f"{page.name}: {sorted(map(str, workflow))}"
        for name, job in workflow["jobs"].items():
            assert set(job.get("needs", "").split()) <= set(workflow["jobs"]), f"{page.name}: {name}"
            ids = {step["id"] for step in job["steps"] if "id" in step}
            named = set(re.findall(r"steps\.(\w+)\.", yaml.safe_dump(job["steps"])))
            assert named <= ids, f"{page.name}: {name} has no steps {sorted(named - ids)}"
            for step in job["steps"]:
                assert ("run" in step) != ("uses" in step), f"{page.name}: {step}"
                for path in re.findall(r"(?:^|[ /])((?:deploy|tests)/[\w./-]+)", step.get("run", "")):
                    # What the steps build is not there before.
                    assert "/target/" in path or (ROOT / path).exists(), f"{page.name}: there is no {path}"
                run("bash", "-n", input=re.sub(r"\$\{\{.*?\}\}", "X", step.get("run", "")))


@check
def what_a_workflow_publishes_is_signed_and_what_only_builds_may_sign_nothing():
    for path in sorted((ROOT / "deploy/github").glob("*.yaml")):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}, f"{path.name}: each job says what it may"
        for name, job in workflow["jobs"].items():
            signs = "cosign sign" in "".join(step.get("run", "") for step in job["steps"])
            assert (job["permissions"].get("id-token") == "write") == signs, f"{path.name}: {name}"
            attested = [step["with"] for step in job["steps"] if "attest-build-provenance" in step.get("uses", "")]
            subjects = sorted(key for given in attested for key in given if key in ("subject-checksums", "subject-digest"))
            assert not signs or subjects == ["subject-checksums", "subject-digest"], f"{path.name}: {name}: {subjects}"


@check
def the_image_has_no_program_without_a_bound():
    bounds = dict(line.split() for line in (ROOT / "deploy/image/sizes").read_text().splitlines() if line and not line.startswith("#"))
    rootfs = (ROOT / "deploy/image/rootfs").read_text()
    programs = {name for names in re.findall(r"^for name in (sluice[\w -]*); do install", rootfs, re.M) for name in names.split()}
    assert len(programs) == 6 and set(bounds) == programs | {"image"}, sorted(bounds)
    ours = sum(int(bounds[name]) for name in programs)
    assert ours < int(bounds["image"]) < ours * 1.1, "the image's bound does not fit those of its programs"


@check
def the_image_is_weighed():
    with tempfile.TemporaryDirectory() as directory:
        programs = pathlib.Path(directory) / "usr/local/bin"
        programs.mkdir(parents=True)
        for name in ["sluice", "sluice-ipamd", "sluice-policyd", "sluice-proxy", "sluice-eni", "sluice-policy"]:
            (programs / name).write_bytes(b"1")
        weigh = [ROOT / "deploy/image/weigh", directory]
        assert "sluice-eni            1 KiB of" in run(*weigh)
        with (programs / "sluice-eni").open("wb") as file:
            file.truncate(64 << 20)
        heavy = subprocess.run([*weigh, "sluice-eni"], capture_output=True, text=True, check=False)
        assert heavy.returncode == 1 and "sluice-eni has grown" in heavy.stderr, heavy
        run(*weigh, "sluice", "image")


@check
def units_have_the_capabilities_of_their_containers():
    chart = (ROOT / "deploy/chart/templates").glob("*.yaml")
    lists = re.findall(r"command: \[/usr/local/bin/(sluice-\w+)\].*?\"capabilities\" \(list ([^)]*)\)", "".join(path.read_text() for path in chart), re.S)
    granted = {name: sorted(re.findall(r'"(\w+)"', words)) for name, words in lists}
    for name in ["sluice-ipamd", "sluice-policyd", "sluice-proxy"]:
        unit = (ROOT / f"deploy/systemd/{name}.service").read_text()
        bounded = sorted(word.removeprefix("CAP_") for word in re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.M)[1].split())
        assert bounded == granted[name], f"{name}: the unit has {bounded}, the chart {granted[name]}"


@check
def units_are_ones_that_systemd_takes():
    # Where there is a systemd: it looks for the programs, too.
    if not shutil.which("systemd-analyze"):
        print("no systemd-analyze: units are not read by it")
        return
    units = sorted((ROOT / "deploy/systemd").glob("*.service"))
    assert len(units) >= 5, units

    def verified(change):
        with tempfile.TemporaryDirectory() as directory:
            here = pathlib.Path(directory)
            for unit in units:
                text = unit.read_text()
                for program in set(re.findall(r"^Exec\w+=(/\S+)", text, re.M)):
                    stub = here / pathlib.Path(program).name
                    stub.write_text("#!/bin/sh\n")
                    stub.chmod(0o755)
                    text = text.replace(f"={program}", f"={stub}")
                (here / unit.name).write_text(change(text))
            words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(here / unit.name for unit in units)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            return done.returncode == 0 and not done.stderr.strip(), done.stderr

    fine, said = verified(lambda text: text)
    assert fine, said
    assert not verified(lambda text: text.replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))[0], "a key that systemd does not know passed"


@check
def manifests_are_applied_with_an_image_that_there_is():
    found = []
    for page in PAGES:
        for line in re.findall(r"^ *(.*\bdeploy/manifests/(?:sluice|addresses-only|uninstall)\.yaml.*)$", page.read_text(), re.M):
            if "kubectl apply" not in line:
                continue
            # The image of the manifests as they are is nobody's.
            command, _, applied = line.partition(" | ")
            assert command.startswith("sed ") and applied == "kubectl apply -f -", f"{page.name}: {line}"
            objects = [one for one in yaml.safe_load_all(run("bash", "-c", command, cwd=ROOT)) if one]
            images = re.findall(r"'image': '([^']*)'", str(objects))
            assert images and all(image.startswith("REGISTRY/sluice:") for image in images), f"{page.name}: {images}"
            names = re.findall(r"'name': 'CLUSTER_NAME', 'value': '([^']*)'", str(objects))
            assert "CLUSTER_NAME" not in command or names == ["NAME"], f"{page.name}: {names}"
            found.append(command)
    assert len(found) >= 3 and any("CLUSTER_NAME" in command for command in found), found


@check
def units_can_write_the_files_that_their_daemons_are_told_to():
    # By docs/observing.md both files may be in /var/log/sluice.
    for name, variable in [("sluice-policyd", "SLUICE_FLOWS_FILE"), ("sluice-proxy", "SLUICE_PROXY_RECORDS_FILE")]:
        unit = (ROOT / f"deploy/systemd/{name}.service").read_text()
        assert "\nLogsDirectory=sluice\n" in unit and f"for {variable}." in unit, name
