#!/usr/bin/env bash
# What CI runs, and what you can run by hand: the hunt, golden data, and a comparison with the last good run.
# Written by `moeracle ci init`; it is yours to change. Reports are left in moeracle-reports/, and cases that failed once
# in .moeracle-cases.txt: they are judged first. Further words go to `check`: bash ci/moeracle.sh --shard 1/4
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TARGET={{ target }}
PROFILE=${MOERACLE_PROFILE:-ci}
REPORTS=moeracle-reports
mkdir -p "$REPORTS"
rm -f "$REPORTS"/{check.json,check.xml,check.html,golden.json,changes.json,summary.md}  # of the run before

echo "== environment"
moeracle ci environment

failed=0
step() {  # a step that fails does not stop the others; all are shown
    echo "== $*"
    "$@" || { code=$?; echo "== exit code $code"; failed=1; }
}

step moeracle check "$TARGET" {{ device }}--profile "$PROFILE" --known known_failures.toml \
    --database .moeracle-cases.txt "$@" --json "$REPORTS/check.json" --junit "$REPORTS/check.xml" --html "$REPORTS/check.html"
[ ! -e "$REPORTS/check.json" ] || step moeracle ci report "$REPORTS/check.json" --summary "${GITHUB_STEP_SUMMARY:-$REPORTS/summary.md}"
step moeracle golden verify "$TARGET" {{ device }}--known known_failures.toml --json "$REPORTS/golden.json"
if [ -e moeracle-baseline.json ] && [ -e "$REPORTS/check.json" ]; then
    step moeracle compare moeracle-baseline.json "$REPORTS/check.json" --json "$REPORTS/changes.json"
else
    echo "== no moeracle-baseline.json: copy $REPORTS/check.json of a good run there, and later runs are compared with it"
fi
exit "$failed"
