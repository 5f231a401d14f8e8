"""When a reply counts as right; shared by every script that scores dialogues."""
import json
import re


def passes(item, reply):
    """Whether `reply`, without its thinking, is what the evaluation item expects."""
    want, match = item["expect"], item["match"]
    if match == "json":
        try:
            return json.loads(reply) == json.loads(want)
        except ValueError:
            return False
    if match == "number":
        found = re.findall(r"-?\d+", reply.split("=")[-1])
        return bool(found) and found[-1] == want
    if match == "exact":
        return reply.strip() == want
    return re.search(r"(?<!\w)" + re.escape(want) + r"(?!\w)", reply) is not None  # contains, exact_word


def without_thinking(reply):
    return reply.split("</think>")[-1].strip()
