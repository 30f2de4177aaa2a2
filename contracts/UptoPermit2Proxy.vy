#pragma version 0.4.3
#pragma evm-version cancun
# A double of x402's proxy for payments up to an amount by Permit2: the signed witness fixes where the money
# goes and which facilitator may say how much of it.

struct TokenPermissions:
    token: address
    amount: uint256

struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256

struct SignatureTransferDetails:
    to: address
    requestedAmount: uint256

struct Witness:
    to: address
    facilitator: address
    validAfter: uint256

struct Permit2612:
    value: uint256
    deadline: uint256
    r: bytes32
    s: bytes32
    v: uint8

interface Permit2:
    def permitWitnessTransferFrom(
        permit: PermitTransferFrom,
        details: SignatureTransferDetails,
        owner: address,
        witness: bytes32,
        witness_type: String[256],
        signature: Bytes[256],
    ): nonpayable

PERMIT2: constant(address) = 0x000000000022D473030F116dDEE9F6B43aC78BA3
WITNESS_TYPE: constant(String[145]) = "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)"
WITNESS_TYPEHASH: constant(bytes32) = keccak256("Witness(address to,address facilitator,uint256 validAfter)")


@internal
def _settle(
    permit: PermitTransferFrom, amount: uint256, owner: address, witness: Witness, signature: Bytes[256]
):
    assert amount != 0, "InvalidAmount"
    assert amount <= permit.permitted.amount, "AmountExceedsPermitted"
    assert msg.sender == witness.facilitator, "UnauthorizedFacilitator"
    assert owner != empty(address), "InvalidOwner"
    assert witness.to != empty(address), "InvalidDestination"
    assert block.timestamp >= witness.validAfter, "PaymentTooEarly"
    extcall Permit2(PERMIT2).permitWitnessTransferFrom(
        permit,
        SignatureTransferDetails(to=witness.to, requestedAmount=amount),
        owner,
        keccak256(abi_encode(WITNESS_TYPEHASH, witness.to, witness.facilitator, witness.validAfter)),
        WITNESS_TYPE,
        signature,
    )


@external
def settle(
    permit: PermitTransferFrom, amount: uint256, owner: address, witness: Witness, signature: Bytes[256]
):
    self._settle(permit, amount, owner, witness, signature)


@external
def settleWithPermit(
    permit2612: Permit2612,
    permit: PermitTransferFrom,
    amount: uint256,
    owner: address,
    witness: Witness,
    signature: Bytes[256],
):
    assert permit2612.value == permit.permitted.amount, "Permit2612AmountMismatch"
    # A permit that somebody else has already used is no reason to stop: its allowance is there.
    success: bool = raw_call(
        permit.permitted.token,
        abi_encode(
            owner,
            PERMIT2,
            permit2612.value,
            permit2612.deadline,
            permit2612.v,
            permit2612.r,
            permit2612.s,
            method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
        ),
        revert_on_failure=False,
    )
    self._settle(permit, amount, owner, witness, signature)
