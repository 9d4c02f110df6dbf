"""One line of log per answer, in logfmt: KEY=VALUE pairs that people read and tools parse.

query_id=aisle-3 sequence=0 status=error error_code=stale_frame error_msg="the newest image ..."
"""

from __future__ import annotations

import json
import re

from edge_atp_msgs.msg import Answer

from edge_atp_ros.convert import to_ns

_PLAIN = re.compile(r"[\w.:/\[\],+-]+")
STATUS_NAMES = {
    getattr(Answer, name): name.removeprefix("STATUS_").lower()
    for name in dir(Answer)
    if name.startswith("STATUS_")
}
ERROR_NAMES = {
    getattr(Answer, name): name.removeprefix("ERROR_").lower()
    for name in dir(Answer)
    if name.startswith("ERROR_")
}


def log_line(answer: Answer) -> str:
    """What became of a question; text from outside is quoted, so that it cannot forge a line."""
    fields: dict[str, object] = {
        "query_id": answer.query_id,
        "sequence": answer.sequence,
        "status": STATUS_NAMES.get(answer.status, answer.status),
    }
    if answer.error_code != Answer.ERROR_NONE:
        fields["error_code"] = ERROR_NAMES.get(answer.error_code, answer.error_code)
    if answer.error_msg:
        fields["error_msg"] = answer.error_msg
    if answer.cameras:
        fields["cameras"] = ",".join(answer.cameras)
        fields["stamp"] = f"{to_ns(answer.header.stamp) / 1e9:.6f}"
    if answer.tokens.visual_total:
        fields["kept"] = f"{answer.tokens.visual_kept}/{answer.tokens.visual_total}"
        fields["generated"] = answer.tokens.generated
        fields["text"] = answer.text
    fields["queue_ms"] = f"{answer.latency.queue_wait * 1e3:.1f}"
    fields["total_ms"] = f"{answer.latency.total * 1e3:.1f}"
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)
