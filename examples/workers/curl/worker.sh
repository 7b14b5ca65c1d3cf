#!/bin/sh
# Publishes the life of one job over HTTP, with nothing but a shell and curl.
# Usage: RELAY_URL=http://127.0.0.1:8080 sh worker.sh JOB [OWNER]
set -u
job=${1:?usage: sh worker.sh JOB [OWNER]}
owner=${2:--}
relay=${RELAY_URL:-http://127.0.0.1:8080}
steps=${STEPS:-20}
run=$(date +%s)-$$
count=0

# offer PATH BODY: connection trouble, 429 and 5xx are tried again for up to 15 seconds. The key is the same
# at each try, so that what was accepted without an answer is not published twice.
offer() {
    answer=$(curl --silent --show-error --write-out ' %{http_code}' \
        --retry 8 --retry-max-time 15 --retry-connrefused --max-time 5 \
        --header 'content-type: application/json' \
        --header "idempotency-key: $run-$count" \
        ${RELAY_TOKEN:+--header "authorization: Bearer $RELAY_TOKEN"} \
        --data "$2" "$relay/v1/jobs/$job$1?owner=$owner")
    case $answer in
        *' 202') return 0 ;;
        *' 429' | *' 5'?? | *' 000') return 1 ;;
        # the relay has said what is wrong with the update; asking again would not help
        *) echo "refused: $answer" >&2 && exit 2 ;;
    esac
}

publish() {
    count=$((count + 1))
    offer "$1" "$2"
}

# The last state is offered until it is accepted.
end() {
    count=$((count + 1))
    until offer '' "$1"; do sleep 2; done
}

# Stands for the real work; at most ten updates a second.
step=0
while [ "$step" -lt "$steps" ]; do
    step=$((step + 1))
    sleep 0.1
    if [ "$step" = "${FAIL_AT:-0}" ]; then
        end '{"status":"failed","error":{"code":"worker","message":"step '"$step"' went wrong"}}'
        exit 1
    fi
    publish '' '{"status":"running","current":'"$step"',"total":'"$steps"',"unit":"steps"}'
    if [ "$step" = $((steps / 2)) ]; then
        publish /milestones/half_way '{"step":'"$step"'}'
    fi
done
end '{"status":"completed","progress":100,"result":{"steps":'"$steps"'}}'
