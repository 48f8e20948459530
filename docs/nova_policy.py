"""Prints a policy.yaml for Nova by which the role `volmig` may do what volmig does, and nothing else of an admin's.

Run it with the Python that runs nova-api, whose release decides which rules there are:

    python3 nova_policy.py >policy.yaml

Nova lets nobody but its administrators (the rule context_is_admin) see instances of other projects and act on locked
ones, so the role has to be one of them. Every rule by which administrators may do something is therefore written out:
for what volmig does it names that role too, for everything else the role `admin` alone.
"""

import sys

ROLE = "volmig"
ADMIN = "rule:context_is_admin"
ALLOWED = {
    f"os_compute_api:{name}"
    for name in (
        *("servers:index", "servers:index:get_all_tenants", "servers:detail", "servers:detail:get_all_tenants"),
        *("servers:show", "servers:start", "servers:stop", "os-extended-server-attributes"),
        *("os-lock-server:lock", "os-lock-server:unlock", "os-lock-server:unlock:unlock_override"),
        *("os-instance-actions:list", "os-instance-actions:show", "os-instance-actions:events"),
        *("os-migrations:index", "os-migrations:index:all_projects"),
        *("os-hypervisors:list", "os-hypervisors:list-detail", "os-services:list"),
    )
}


def overrides(rules):
    """The rules to write out, from the pairs (name, default) of a release: {name: rule}."""
    found = {"context_is_admin": f"role:admin or role:{ROLE}"}
    for name, default in rules:
        if name in ALLOWED:
            found[name] = f"({default}) or role:{ROLE}"
        elif name != "context_is_admin" and (ADMIN in default or "is_admin:True" in default or "admin_api" in default):
            found[name] = default.replace(ADMIN, "role:admin").replace("is_admin:True", "role:admin")
    missing = ALLOWED - {name for name, _ in rules}
    if missing:
        raise SystemExit(f"This Nova has no rule {', '.join(sorted(missing))}: volmig does not know this release.")
    return found


def main():
    from nova import policies, version

    rules = [(rule.name, rule.check_str) for rule in policies.list_rules()]
    lines = [f"# For Nova {version.version_string()}, made by volmig's docs/nova_policy.py. The role {ROLE}:"]
    lines += [f'"{name}": "{rule}"' for name, rule in overrides(rules).items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
