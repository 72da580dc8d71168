"""Texts for a load test that was given none: short and long, as users write them."""

__all__ = ["DEFAULT_TEXTS"]

DEFAULT_TEXTS = (
    "Great service!",
    "The match went to extra time.",
    "Where is my order?",
    "Shares fell sharply after the company cut its outlook for the year.",
    "How do I change the delivery address of an order that has already been shipped?",
    "The new phone charges in twenty minutes, but its battery barely lasts until the evening.",
    "Simmer the tomatoes with garlic and basil until the sauce is thick, then season to taste.",
    "Refund please",
    "Scientists have found water ice in a crater that sunlight has not reached for two billion"
    " years, which makes it a likely place for the next landing.",
    "I have been a customer for nine years and never had to complain before, but this time the"
    " technician came two hours late, left after five minutes and billed me for half a day.",
    "ok",
    "The committee will publish its recommendations next spring, after hearings in every region"
    " and a round of written comments that is open to everybody who lives or works there.",
    "Is the train to the airport running on Sunday?",
    "He scored twice in the second half, missed a penalty in stoppage time, and still walked off"
    " the pitch with the match ball under his arm and the crowd singing his name.",
    "My password does not work any more since the update.",
    "The hotel is five minutes from the beach and the staff could not have been kinder. Our room"
    " was small but spotless, breakfast was served until noon, and when our flight was cancelled"
    " they found us another night without being asked. The one thing to know is that the street"
    " below is loud until late: take a room at the back if you sleep lightly. We would return"
    " without hesitation and have already recommended it to friends who travel with children.",
    "Rain is expected in the north, with strong winds along the coast.",
    "What a waste of money",
    "The court ruled that the contract was void because one of the parties had concealed a debt"
    " of more than four million, and ordered it to pay the costs of both instances.",
    "An early draft of the protocol assumed that every node has a reliable clock. That assumption"
    " turned out to be wrong in two ways: clocks drift when a machine is under load, and they jump"
    " when it is restored from a snapshot. The second draft therefore orders events by counters"
    " alone, uses time only to decide how long to wait, and treats a clock that runs backwards as"
    " one more fault to be survived. Readers who know the earlier text will find that the proofs"
    " have become shorter, that the message format is the same, and that one of the parameters,"
    " the maximum skew, has disappeared.",
    "Can I pay in instalments?",
    "The gallery shows sixty drawings that were thought to be lost during the war.",
    "Turn left at the bakery.",
    "Her third album swaps the guitars for a string quartet, and it suits her voice better than"
    " anything she has recorded since her debut.",
)
