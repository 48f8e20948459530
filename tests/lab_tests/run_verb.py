"""Runs on a hypervisor: verbs of the installed hostctl without volmig, each as its step would run it.

Argument: hostctl. Standard input: a JSON list of [verb, job, arguments]. Prints a JSON list: evidence, or a refusal
{"code", "tried", "found", "next"}, at which it ends.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])
from hostctl import virsh
from hostctl.act import Stop
from hostctl.commands import Work
from hostctl.verbs import VERBS

given = json.load(sys.stdin)
if given["off"]:  # an instance that no libvirt here knows counts as shut off
    virsh.state = lambda work, instance: "shut off"
said = []
for verb, job, args in given["calls"]:
    work = Work(args, job, VERBS[verb].acts)
    try:
        said.append(VERBS[verb].run(work))
    except Stop as stop:
        said.append({"code": stop.code, "tried": stop.tried, "found": stop.found, "next": stop.next_step})
        break
    said[-1]["commands"] = [each["text"] for each in work.commands if not each["probe"]]
json.dump(said, sys.stdout)
