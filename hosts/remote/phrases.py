"""What each verb does, as an infinitive after "Tried to": operators read sentences, never the names of functions."""

PHRASES = {
    "hello": "read its version",
    "policy": "read the policy",
    "inventory": "read the inventory",
    "leftovers": "scan for leftovers",
    "reach": "test the network",
    "source_facts": "read the facts of the source",
    "relay_facts": "read the facts of the relay",
    "destination_facts": "read the facts of the destination",
    "instance_state": "read the state of the instance",
    "status": "read its boot ID",
    "fence": "keep earlier workers out",
    "watch": "follow the progress",
    "own": "take ownership of the migration",
    "recall": "read the hypervisor's state of the migration",
    "lv_create": "create the temporary volume",
    "lv_remove": "remove the temporary volume",
    "fs_create": "create and mount the temporary filesystem",
    "fs_remove": "unmount the temporary filesystem",
    "export": "export the temporary filesystem",
    "unexport": "end the export of the temporary filesystem",
    "nfs_mount": "mount the relay's export",
    "nfs_unmount": "unmount the relay's export",
    "lv_fence": "fence the source volume",
    "lv_unfence": "release the source volume",
    "convert": "convert the source volume",
    "compare": "compare the copy with the source",
    "discard_copy": "discard the copy",
    "seal": "hash the copy",
    "stage": "stage the copy on the share",
    "unstage": "remove the staged copy",
    "stage_verify": "verify the staged copy",
    "instance_lock": "lock the instance",
    "instance_unlock": "unlock the instance",
    "instance_stop": "shut the instance down",
    "instance_start": "start the instance",
    "swap": "swap the disk",
    "swap_back": "swap the old disk back",
    "purge": "delete the unused disk",
    "rehearse": "read the backup and compare it",
    "forget": "clean up after the migration",
    "nova_facts": "read the instance from Nova",
}


def phrase(verb: str) -> str:
    """What `verb` does, as an infinitive."""
    return PHRASES.get(verb, "run a step")


def sentence(tried: str, found: str, next_step: str = "") -> str:
    """The one way to say what went wrong: an infinitive, a clause and a sentence, with one full stop after each."""
    after = next_step.strip()
    after = f" {after.rstrip('. ')}{'' if after.endswith(('?', '!')) else '.'}" if after else ""
    return f"Tried to {tried.rstrip('. ')}: {found.rstrip('. ')}.{after}"
