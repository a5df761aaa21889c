"""All attacks, by name."""

from benchmarks import (
    attack_bodies,
    attack_pages,
    attack_parts,
    attack_requests,
    attack_texts,
    attack_uploads,
    attack_wire,
)

ATTACKS = {
    attack.name: attack
    for module in (
        attack_requests,
        attack_texts,
        attack_bodies,
        attack_parts,
        attack_pages,
        attack_uploads,
        attack_wire,
    )
    for attack in module.ATTACKS
}
