"""The documentation: a book that builds, links that lead somewhere, no page that is in no list."""

import html
import pathlib
import re
import shlex
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
        for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                for part in re.split(r"\s+#|\s*[|;]\s*|\$\(", line):
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


@check
def workflows_in_the_pages_are_ones_and_run_what_there_is():
    found = 0
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(name: .*?)^```", page.read_text(), re.M | re.S):
            workflow = yaml.safe_load(block)
            # YAML 1.1 reads `on` as true.
            assert set(workflow) == {"name", True, "jobs"}, f"{page.name}: {sorted(map(str, workflow))}"
            for name, job in workflow["jobs"].items():
                assert set(job.get("needs", "").split()) <= set(workflow["jobs"]), f"{page.name}: {name}"
                for step in job["steps"]:
                    assert ("run" in step) != ("uses" in step), f"{page.name}: {step}"
                    for path in re.findall(r"(?:^|[ /])((?:deploy|tests)/[\w./-]+)", step.get("run", "")):
                        # What the steps build is not there before.
                        assert "/target/" in path or (ROOT / path).exists(), f"{page.name}: there is no {path}"
                    run("bash", "-n", input=re.sub(r"\$\{\{.*?\}\}", "X", step.get("run", "")))
            found += 1
    assert found >= 2, found


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
def units_can_write_the_files_that_their_daemons_are_told_to():
    # By docs/observing.md both files may be in /var/log/sluice.
    for name, variable in [("sluice-policyd", "SLUICE_FLOWS_FILE"), ("sluice-proxy", "SLUICE_PROXY_RECORDS_FILE")]:
        unit = (ROOT / f"deploy/systemd/{name}.service").read_text()
        assert "\nLogsDirectory=sluice\n" in unit and f"for {variable}." in unit, name
