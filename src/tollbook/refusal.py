"""What every refusal is: a class with a stable reason, a sentence with what to do next, its codes."""

from typing import ClassVar


class Refusal(Exception):
    """Tollbook said no, and says why.

    `reason` is the stable kebab-case code (the last part of the problem's `type`), `status` the HTTP status,
    `exit_code` the command line's, and the sentence is for a person: what was wrong and what to do next.
    `details` are further members of the problem object (RFC 9457, section 3.2); never secrets.
    """

    reason: ClassVar[str] = "refused"
    status: ClassVar[int] = 400
    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, **details: object) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.details = details

    def problem(self) -> dict[str, object]:
        """The RFC 9457 problem object: type, title, status, detail, and the details as extension members."""
        return {
            "type": f"urn:tollbook:problem:{self.reason}",
            "title": self.reason.replace("-", " "),
            "status": self.status,
            "detail": self.sentence,
            **self.details,
        }
