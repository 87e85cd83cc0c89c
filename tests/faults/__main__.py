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
    arguments = parser.parse_args()
    if arguments.kills:
        sys.exit(0 if kills.main(arguments.kills, arguments.seed) else 1)
    results = campaign.run(arguments.cases, arguments.seed, arguments.only)
    for kind, name, end, message in campaign.wrong(results):
        print(f"{kind}: {name}: {end}\n{message[-1500:]}")
    print(campaign.table(results))
    sys.exit(1 if campaign.wrong(results) else 0)
