"""Webhooks: whoever asked is told by HTTPS what the books did, at least once and in order per subject.

A *subscription* is a URL, the event types it wants, and a secret. An *event* is a fact of the journal; its
type is the book and the kind, as payments.payment.settled. A *delivery* is one event to one subscription; a
*queue* holds a subscription's deliveries about one subject, of which only the first is under way; an
*attempt* is one POST. The road: journal → dispatch.py (deliveries are made where the reader is moved on)
→ sender.py (claims queues, a bounded number per endpoint) → sending.py (one POST) → deliveries.py (what came
of it). Tables: settlement.webhook_subscriptions, _deliveries, _queues, _attempts. See docs/webhooks.md.
"""
