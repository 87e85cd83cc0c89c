"""`python -m tests.faults --cases 3000 --seed 0` prints the table of the campaign; ``--kills 60`` that of the kills."""

import argparse
import sys

from tests.faults import campaign, kills

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(campaign.SHARES))
    parser.add_argument("--kills", type=int, help="instead: this many kills and faults of every resumable job")
    asked = parser.parse_args()
    if asked.kills:
        sys.exit(0 if kills.main(asked.kills, asked.seed) else 1)
    found = campaign.run(asked.cases, asked.seed, asked.only)
    for kind, name, end, said in campaign.wrong(found):
        print(f"{kind}: {name}: {end}\n{said[-1500:]}")
    print(campaign.table(found))
    sys.exit(1 if campaign.wrong(found) else 0)
