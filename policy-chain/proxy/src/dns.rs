//! DNS over UDP and TCP: names asked for are judged, and addresses in answers are learned.
